import pytest

BIGINT = 2**63 - 1


async def test_an_item_is_created_read_replaced_and_deleted(client):
    created = await client.post("/items", json={"name": " anvil ", "description": "100 kg"})
    assert created.status_code == 201
    item = created.json()
    assert (item["name"], item["description"]) == ("anvil", "100 kg")
    assert item["created_at"] == item["updated_at"]

    path = f"/items/{item['id']}"
    assert (await client.get(path)).json() == item

    replaced = await client.put(path, json={"name": "hammer"})
    assert replaced.status_code == 200
    assert (replaced.json()["name"], replaced.json()["description"]) == ("hammer", None)
    assert replaced.json()["created_at"] == item["created_at"]
    assert replaced.json()["updated_at"] > item["updated_at"]
    assert (await client.get(path)).json() == replaced.json()

    deleted = await client.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await client.get(path)).status_code == 404


async def test_items_are_listed_by_id_in_pages(client):
    assert (await client.get("/items")).json() == []
    for number in range(5):
        assert (await client.post("/items", json={"name": f"item {number}"})).status_code == 201

    async def names(query: str) -> list[str]:
        response = await client.get(f"/items{query}")
        assert response.status_code == 200
        return [item["name"].removeprefix("item ") for item in response.json()]

    assert await names("") == ["0", "1", "2", "3", "4"]
    assert await names("?limit=2") == ["0", "1"]
    assert await names("?limit=2&offset=3") == ["3", "4"]
    assert await names(f"?offset={BIGINT}") == []


@pytest.mark.parametrize("method", ["get", "put", "delete"])
async def test_a_missing_item_is_404(client, method):
    body = {"json": {"name": "x"}} if method == "put" else {}
    response = await getattr(client, method)(f"/items/{BIGINT}", **body)
    assert (response.status_code, response.json()) == (404, {"detail": f"item {BIGINT} not found"})


@pytest.mark.parametrize("path", ["/items/0", "/items/-1", "/items/x", f"/items/{BIGINT + 1}",
                                  "/items?limit=0", "/items?limit=101", "/items?offset=-1",
                                  f"/items?offset={BIGINT + 1}"])  # fmt: skip
async def test_numbers_out_of_bounds_are_422(client, path):
    assert (await client.get(path)).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{}",
        b'{"name": ""}',
        b'{"name": "   "}',
        b'{"name": "a\\u0000b"}',
        b'{"name": "\\ud800"}',
        b'{"name": "x", "description": "\\u0000"}',
        b'{"name": "' + b"x" * 201 + b'"}',
        b'{"name": 1e999}',
    ],
)
async def test_what_postgresql_cannot_hold_is_422_and_is_not_repeated(client, body):
    response = await client.post("/items", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert {key for problem in response.json()["detail"] for key in problem} == {"loc", "msg", "type"}
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_text_of_every_script_survives(client):
    created = await client.post("/items", json={"name": "Amboß 鉄床 🔨", "description": "line\nline"})
    assert created.status_code == 201
    read = (await client.get(f"/items/{created.json()['id']}")).json()
    assert (read["name"], read["description"]) == ("Amboß 鉄床 🔨", "line\nline")
