"""The Grafana dashboard of the metrics under ``spo/``, for what verl's RL-Insight logger exports to Prometheus.

``python -m spo_verl.training.pages dashboard`` writes it into docs/grafana.json; a test compares, and looks for every
metric.
"""

from __future__ import annotations

import json
from typing import Any

from spo_verl.training.health import HEALTH
from spo_verl.training.metrics import METRICS, PREFIX, prometheus_name

NAMESPACE = "rl_insight_monitor_"
"""What RL-Insight 0.3 puts before each name."""
CHOSEN = 'project=~"$project",experiment_name=~"$experiment_name"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3

ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "Batch": {
        "Reward and value": ("reward/mean", "value/batch_mean", "value/mean"),
        "Range of the rewards": ("reward/min", "reward/max"),
        "Raw advantage": ("advantage/raw_mean",),
        "Variance": ("advantage/raw_variance", "advantage/variance_removed"),
        "Without signal": (
            "advantage/near_zero_0_0001_share",
            "advantage/near_zero_0_02_share",
            "advantage/grpo_degenerate_share",
        ),
        "Staleness": ("staleness/mean", "staleness/max"),
    },
    "Prompts": {
        "Values of all prompts": ("value/bin_<k>",),
        "Coverage": ("coverage", "first_visit_share"),
        "Effective sample size": ("n_eff/revisit_mean", "n_eff/mean"),
        "Effective prompts": ("effective_prompts",),
        "Calibrated read-out": ("readout/slope", "readout/intercept"),
        "Data sources: drawn": ("source/<name>/drawn_share",),
        "Data sources: value": ("source/<name>/value_mean",),
    },
    "Forgetting": {
        "Retention": ("rho/mean", "rho/min", "rho/max"),
        "Retention at its floor": ("rho/at_floor_share",),
        "Divergence": ("divergence/mean", "divergence/max", "divergence_acting/mean", "divergence_updated/mean"),
        "Extra forwards": ("drift/forwards_total", "drift/incomparable_total", "drift/unmeasured_total"),
        "Tokens of extra forwards": ("drift/tokens_total",),
        "Movement of the policy": ("drift/movement_total",),
    },
    "Rollouts": {
        "Outcomes": ("evidence/observed_total", "evidence/untrained_total", "evidence/duplicate_total"),
        "Outcomes without training": (
            "evidence/failed_total",
            "evidence/stale_total",
            "evidence/surplus_total",
            "evidence/aborted_total",
        ),
        "Rollouts that were not trained on": (
            "rollouts/failed_total",
            "rollouts/stale_total",
            "rollouts/surplus_total",
            "rollouts/aborted_total",
        ),
        "Open rollouts": ("open_rollouts",),
        "Carried rollouts": ("late/carried_share",),
        "Tokens of responses": ("late/carried_tokens_mean", "late/fresh_tokens_mean", "late/evicted_tokens_mean"),
    },
    "Cost": {
        "Seconds of a step": tuple(key for key in METRICS if key.startswith("seconds_total/")),
        "Bytes": ("bytes/tracker", "bytes/memory"),
    },
}
"""Heading -> title of each panel -> its metrics."""


def dashboard() -> str:
    """The dashboard as JSON, in Grafana's classic model."""
    panels: list[dict[str, Any]] = []
    top = 0
    for heading, contents in ROWS.items():
        panels.append({"type": "row", "title": heading, "collapsed": False, "panels": [], **_at(0, top, 24, 1)})
        top += 1
        for number, (title, keys) in enumerate(contents.items()):
            place = _at(WIDTH * (number % COLUMNS), top + HEIGHT * (number // COLUMNS), WIDTH, HEIGHT)
            panels.append({**_panel(title, keys), **place})
        top += HEIGHT * -(-len(contents) // COLUMNS)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    made = {
        "title": "SPO",
        "uid": "spo-verl",
        "tags": ["RL-Insight", "verl", "spo"],
        "schemaVersion": 39,
        "editable": True,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": _variables()},
        "panels": panels,
    }
    return json.dumps(made, indent=1) + "\n"


def _at(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _panel(title: str, keys: tuple[str, ...]) -> dict[str, Any]:
    stacked = keys[0].startswith(("value/bin", "source/<name>/drawn", "seconds_total"))
    custom = {"fillOpacity": 40 if stacked else 0, "stacking": {"mode": "normal" if stacked else "none"}}
    return {
        "type": "timeseries",
        "title": title,
        "description": "\n\n".join(
            f"**{PREFIX}{key}** {METRICS[key]} *Healthy:* {HEALTH[key].healthy} {HEALTH[key].otherwise}".strip()
            for key in keys
        ),
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, **_query(key)}
            for number, key in enumerate(keys)
        ],
    }


def _query(key: str) -> dict[str, str]:
    name = NAMESPACE + prometheus_name(PREFIX + key)
    if "<" not in key:
        return {"expr": f"{name}{{{CHOSEN}}}", "legendFormat": f"{key} {{{{experiment_name}}}}"}
    pattern = name.replace("<k>", "[0-9]").replace("<name>", ".+")
    return {"expr": f'{{__name__=~"{pattern}",{CHOSEN}}}', "legendFormat": "{{__name__}} {{experiment_name}}"}


def _variables() -> list[dict[str, Any]]:
    datasource = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    labels = [
        {
            "name": label,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": f'label_values({{__name__=~"{NAMESPACE}spo_.*"}}, {label})',
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }
        for label in ("project", "experiment_name")
    ]
    return [datasource, *labels]
