"""Items: create, read, replace, delete."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from forge_app.database import DatabaseDependency
from forge_app.models import Item
from forge_app.schemas import ItemInput, ItemOutput

router = APIRouter(prefix="/items", tags=["items"])

# bounds of PostgreSQL's bigint: beyond them the driver fails instead of finding nothing
_BIGINT = 2**63 - 1
ItemId = Annotated[int, Path(ge=1, le=_BIGINT)]


@router.get("", response_model=list[ItemOutput])
async def list_items(
    database: DatabaseDependency,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=_BIGINT)] = 0,
) -> list[Item]:
    """Return at most `limit` items in the order of their ids, after skipping `offset`."""
    async with database.session() as session:
        return list(await session.scalars(select(Item).order_by(Item.id).limit(limit).offset(offset)))


@router.post("", response_model=ItemOutput, status_code=201)
async def create_item(database: DatabaseDependency, body: ItemInput) -> Item:
    """Store a new item."""
    async with database.session() as session:
        item = Item(name=body.name, description=body.description)
        session.add(item)
    return item


@router.get("/{item_id}", response_model=ItemOutput)
async def read_item(database: DatabaseDependency, item_id: ItemId) -> Item:
    """Return one item."""
    async with database.session() as session:
        return await _get(session, item_id)


@router.put("/{item_id}", response_model=ItemOutput)
async def replace_item(database: DatabaseDependency, item_id: ItemId, body: ItemInput) -> Item:
    """Replace name and description of an item."""
    async with database.session() as session:
        item = await _get(session, item_id)
        item.name, item.description = body.name, body.description
    return item


@router.delete("/{item_id}", status_code=204)
async def delete_item(database: DatabaseDependency, item_id: ItemId) -> None:
    """Remove an item."""
    async with database.session() as session:
        await session.delete(await _get(session, item_id))


async def _get(session: AsyncSession, item_id: int) -> Item:
    item = await session.get(Item, item_id)
    if item is None:
        raise HTTPException(404, f"item {item_id} not found")
    return item
