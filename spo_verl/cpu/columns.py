"""Which columns of a batch verl's training processes fetch."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from spo_verl.cpu.registry import workaround

NOT_FOR_TRAINING = frozenset(
    (
        "ability",
        "agent_name",
        "data_source",
        "extra_fields",
        "extra_info",
        "index",
        "interaction_kwargs",
        "metrics",
        "raw_prompt",
        "reward_model",
        "tools_kwargs",
    )
)
"""Columns of the dataset and of the rollout that no training engine reads."""


@workaround("fewer-columns", target="verl.utils.transferqueue_utils:_async_meta_to_realdata", parameters=("meta",))
def fetch_fewer_columns(module: ModuleType) -> None:
    """Leave out what only rollouts and rewards need: texts and dictionaries, unpacked and copied one by one."""
    stock = module._async_meta_to_realdata

    async def fetched(meta: Any) -> Any:
        if isinstance(meta, module.KVBatchMeta):
            meta = await module.async_kv_batch_meta2batch_meta(meta)
        if meta.size:
            meta = meta.select_fields([name for name in meta.field_names if name not in NOT_FOR_TRAINING])
        return await stock(meta)

    module._async_meta_to_realdata = fetched  # type: ignore[attr-defined]
