"""The actor between worker 0 and the driver; its process imports this alone."""

from __future__ import annotations

import asyncio
from typing import Any


class Mailbox:
    """News from worker 0 to the driver, and the driver's word to worker 0."""

    def __init__(self) -> None:
        self._news: asyncio.Queue[Any] = asyncio.Queue()
        self._stop = asyncio.Event()

    async def put(self, news: Any) -> None:
        await self._news.put(news)

    async def get(self) -> Any:
        return await self._news.get()

    async def ask_to_stop(self) -> None:
        self._stop.set()

    async def wait_for_stop(self) -> None:
        await self._stop.wait()
