"""`POST /v1/embeddings`: one vector for each input, each bought and receipted by itself.

Invariant: the numbers that a client gets are exactly those that the receipt commits to.
"""

import base64
from functools import partial

from aiohttp import web

from deaios.compute.embedding import decode_vector
from deaios.gateway.answer import Answer
from deaios.gateway.desk import Desk, Sale, off_loop
from deaios.gateway.embeddings_wire import Embedding, EmbeddingList, EmbeddingUsage
from deaios.gateway.keys import KeyRecord
from deaios.gateway.papers import build_proof, opening_of, usage_of
from deaios.gateway.telling import read_asked, tell
from deaios.market.embedding import read_embedding_body
from deaios.market.question import Api, VectorForm
from deaios.runtime.http import json_response


class EmbeddingsDoor:
    """The route's handler."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def embed(self, request: web.Request, key: KeyRecord, key_text: str) -> web.StreamResponse:
        """Answer one request of an authenticated key."""
        asked = await read_asked(request, key, key_text, self._desk)
        questions = await off_loop(asked.body, partial(read_embedding_body, asked.body))
        sale = self._desk.sell(asked, Api.EMBEDDINGS, questions)
        build = partial(build_embeddings, self._desk.network_id, sale)
        return await tell(request, self._desk, sale, lambda: json_response(build()), None)


def build_embeddings(network_id: bytes, sale: Sale) -> EmbeddingList:
    """The answer."""
    usage = usage_of([opening_of(answer) for answer in sale.answers])
    return EmbeddingList(
        data=[Embedding(_show(answer), index) for index, answer in enumerate(sale.answers)],
        model=sale.first.wanted.model.names[0],
        usage=EmbeddingUsage(usage.prompt_tokens, usage.prompt_tokens),
        deaios=build_proof(network_id, sale.answers),
    )


def _show(answer: Answer) -> list[float] | str:
    vector = decode_vector(opening_of(answer).output_ids)
    if answer.wanted.question.vector == VectorForm.BASE64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
