"""What an operator may do to a worker by hand: choose its home role, or send it away.

    POST /mesh/workers/{worker}/role    {"role": "prompt" | "token" | "mixed" | "auto"}
    POST /mesh/workers/{worker}/drain   {"force": false}

`worker` is a full id, or a plain name while only one worker has it. 202 answers who is meant; that it was done, /mesh
shows. Only JSON is taken: a web page of somebody else cannot send that unasked.
"""

from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from services.gateway.mesh import Mesh
from services.gateway.openai import Model, read
from shared.broker.port import Broker
from shared.clock import Clock
from shared.errors import Overloaded, Rejected, Transient
from shared.ids import WorkerId
from shared.policy.worker_view import WorkerView
from shared.wire.reports import DrainWorker, SetRole
from shared.wire.streams import worker_stream
from shared.wire.terms import Role, State


class RoleOrder(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["prompt", "token", "mixed", "auto"]


class DrainOrder(BaseModel):
    model_config = ConfigDict(strict=True)
    force: bool = False


class Operations:
    def __init__(self, mesh: Mesh, broker: Broker, clock: Clock) -> None:
        self._mesh = mesh
        self._broker = broker
        self._clock = clock
        self._drained: set[WorkerId] = set()  # their reports may not say so yet

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/mesh/workers/{worker}/role", self.set_role),
            web.post("/mesh/workers/{worker}/drain", self.drain),
        ]

    async def set_role(self, request: web.Request) -> web.Response:
        order = await _order(RoleOrder, request)
        worker = self._worker(request.match_info["worker"])
        role = None if order.role == "auto" else Role(order.role)
        await self._tell(SetRole(worker_id=worker.worker_id, role=role, fence=None, reason="an operator said so"))
        return web.json_response({"worker": worker.worker_id, "role": order.role}, status=202)

    async def drain(self, request: web.Request) -> web.Response:
        order = await _order(DrainOrder, request)
        worker = self._worker(request.match_info["worker"])
        model = worker.report.model
        ready = self._mesh.view.reachable(self._clock.now())
        others = [o for o in ready if o.report.model == model and o.worker_id not in self._drained | {worker.worker_id}]
        if not others and not order.force:
            message = f"{worker.worker_id} is the last worker that serves {model}; it is drained only by force"
            raise Rejected(message, param="force", code="last_worker", status=409)
        await self._tell(DrainWorker(worker_id=worker.worker_id))
        self._drained.add(worker.worker_id)
        return web.json_response({"worker": worker.worker_id}, status=202)

    async def _tell(self, order: SetRole | DrainWorker) -> None:
        try:
            await self._broker.publish(worker_stream(order.worker_id), order)
        except Transient as error:
            raise Overloaded("the broker does not answer", retry_after_s=1.0, code="broker_silent") from error

    def _worker(self, name: str) -> WorkerView:
        view = self._mesh.view
        view.forget(self._clock.now())
        here = {
            worker_id: worker
            for worker_id, worker in sorted(view.workers.items())
            if worker.report.state is not State.LOST and not view.out_of_sight(worker)
        }
        meant = [i for i in here if i == name] or [i for i in here if i.rpartition(".")[0] == name]
        if not meant:
            known = ", ".join(here) or "nobody"
            raise Rejected(f"no worker {name}; here are {known}", param="worker", code="worker_not_found", status=404)
        if len(meant) > 1:
            message = f"{name} may be any of {', '.join(meant)}: give the full id"
            raise Rejected(message, param="worker", code="worker_ambiguous", status=409)
        return here[meant[0]]


async def _order(schema: type[Model], request: web.Request) -> Model:
    if request.content_type != "application/json":
        raise Rejected("content-type: send application/json", code="invalid_content_type", status=415)
    return read(schema, await request.read())
