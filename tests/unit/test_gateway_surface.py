"""The gateway's other endpoints: models, tokenizer, mesh, timeline, metrics."""

import asyncio

import pytest

from shared.wire.messages import (
    HandedOff,
)
from shared.wire.terms import Finish, PushMode
from tests.support.gateway import CONTEXT, body, heard_by_gateway, mesh, read_all


async def test_models_tokenize_detokenize_version() -> None:
    async with mesh() as rig:
        async with rig.http.get(rig.url + "/v1/models") as response:
            (card,) = (await response.json())["data"]
            assert (card["id"], card["object"], card["max_model_len"]) == ("bytes", "model", CONTEXT)
        async with rig.post("/tokenize", {"prompt": "é"}) as response:
            content = await response.json()
            assert (content["tokens"], content["count"], content["max_model_len"]) == ([195, 169], 2, CONTEXT)
        async with rig.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]}) as response:
            assert (await response.json())["count"] == len("user: x\nassistant: ")
        async with rig.post("/detokenize", {"tokens": [195, 169]}) as response:
            assert await response.json() == {"prompt": "é"}
        async with rig.post("/detokenize", {"tokens": [999]}) as response:
            assert response.status == 400
        async with rig.http.get(rig.url + "/version") as response:
            assert (await response.json())["version"]


async def test_mesh_timeline_and_metrics() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(read_all(rig, body(stream=True)))
        request = await rig.submitted()
        await rig.place(request)
        await heard_by_gateway(rig, request, "placed")
        rig.say("prompt", request, 0, b"a")
        handed_off = HandedOff(
            request_id=request.request_id, attempt=1, mode=PushMode.LAYERWISE, transport="memory", kv_bytes=4096,
            transfer_s=0.02, exposed_s=0.001, resent_slices=0,
        )  # fmt: skip
        rig.send("prompt", request, handed_off)
        await heard_by_gateway(rig, request, "handed_off")
        rig.say("token", request, 1, b"b", Finish.LENGTH)
        await asked
        async with rig.http.get(f"{rig.url}/mesh/requests/cmpl-{request.request_id}") as response:
            timeline = await response.json()
        stages = [one["stage"] for one in timeline["stages"]]
        assert stages[:3] == ["received", "submitted", "placed"] and stages[-1] == "ended"
        assert timeline["outcome"] == "completed" and {"first_token", "handed_off", "measured"} <= set(stages)
        async with rig.http.get(rig.url + "/mesh") as response:
            picture = await response.json()
        assert {worker["id"]: worker["state"] for worker in picture["workers"]} == {
            "prompt.1": "ready", "token.1": "ready",
        }  # fmt: skip
        (token,) = [worker for worker in picture["workers"] if worker["role"] == "token"]
        assert token["cost_model"] == {
            "prefill_ms": [0.0, 1.0, 0.0], "decode_ms": [10.0, 0.001, 0.1], "prefill_error": 0.02,
            "decode_error": 0.02, "prefill_steps": 100, "decode_steps": 100,
        }  # fmt: skip
        assert token["prefill_tokens_per_s"] == pytest.approx(1000)
        assert token["decode_tokens_per_s"] == pytest.approx(1 / 0.010116), "one sequence, one block"
        fields = ("role_pinned", "queue_s", "decodes", "expected_output_tokens", "step_target_s")
        assert [token[field] for field in fields] == [False, 0.0, 0, 256.0, 1.0]
        assert {service["service"] for service in picture["services"]} == {"gateway", "router"}
        assert picture["models"] == ["bytes"] and picture["version"]
        async with rig.http.get(rig.url + "/metrics") as response:
            text = await response.text()
        for line in EXPECTED_METRICS:
            assert "splitmesh_" + line in text, line


EXPECTED_METRICS = (
    "time_to_first_token_seconds_count 1.0",
    "inter_token_latency_seconds_count 1.0",
    "e2e_request_latency_seconds_count 1.0",
    "request_queue_time_seconds_count 1.0",
    "request_prefill_time_seconds_count 1.0",
    "request_decode_time_seconds_count 1.0",
    'requests_total{outcome="completed"} 1.0',
    "prompt_tokens_total 2.0",
    "generation_tokens_total 2.0",
    "kv_transfer_seconds_count 1.0",
    "kv_transfer_exposed_seconds_count 1.0",
    "kv_transfer_bytes_total 4096.0",
    'kv_cache_usage_ratio{worker="token.1"} 0.25',
    'kv_blocks_total{worker="prompt.1"} 64.0',
    'kv_blocks_used{worker="prompt.1"} 16.0',
    'kv_blocks_leaked{worker="prompt.1"} 0.0',
    'num_requests_waiting{worker="prompt.1"} 0.0',
    'num_requests_running{worker="prompt.1"} 0.0',
    'kv_transport_info{bandwidth="1.50",transport="memory",worker="token.1"} 1.0',
    "role_changes_total",
    "event_loop_lag_seconds",
)
