"""What one purchase is for: a prompt, how to sample after it, and who may serve; and which part of a request it is.

Pure. Every door of the gateway reads its bodies into questions, and a verifier reads them again: nothing of a question
comes from elsewhere. A prompt is a conversation, which the model's template renders, or it is raw: text or token ids as
they are, in which no text becomes a special token. It knows no price.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deaios.compute.commitments import Context, RawContext, encode_context, encode_raw_context, hash_client, hash_part
from deaios.compute.constraint import Constraint
from deaios.compute.embedding import EMBEDDING_PARAMS
from deaios.compute.tokenizer import Tokenizer
from deaios.compute.tools import Tool, ToolCall, encode_tools
from deaios.ledger.structs import TOP_K_OFF, TOP_P_OFF, AuditPolicy, Level, Params
from deaios.market.fields import InvalidParameter
from deaios.market.preferences import Preferences
from deaios.primitives.encoding import Json
from deaios.primitives.hashing import ZERO32
from deaios.primitives.keys import Address

SEED_BITS = 64
TOP_K_MAX = 1 << 20
"""Above every vocabulary known; a larger value would mean the same as no limit."""
CHOICES_MAX = 32
"""Purchases that one request makes: its prompts times `n`."""
TEMPERATURE_MILLI_DEFAULT = 1000
MAX_TOKENS_DEFAULT = 256
MIN_LEVEL_DEFAULT = Level.SEEDED
AUDIT_POLICY_DEFAULT = AuditPolicy.BUYER_ONLY

Render = Callable[[Sequence[Mapping[str, Json]], Sequence[Tool]], tuple[int, ...]]
"""The model's chat template with its tokenizer: messages and tools to prompt ids."""


class Api(StrEnum):
    """The doors that sell tokens: how a body is to be read."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"


class VectorForm(StrEnum):
    """How a vector is written in an answer; it is the same vector."""

    FLOAT = "float"
    BASE64 = "base64"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; the role is `system`, `user`, `assistant` or `tool`.

    An assistant's turn may have made calls, beside or instead of content; a tool's turn answers the call of an id.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def encode_json(self) -> dict[str, Json]:
        """As contexts, templates and answer files take it."""
        value: dict[str, Json] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in self.tool_calls]
            value["toolCalls"] = calls
        if self.tool_call_id is not None:
            value["toolCallId"] = self.tool_call_id
        return value


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that is asked for.

    `max_tokens` is None where the body left it open; `top_logprobs` is None where no log probabilities are wanted,
    otherwise the number of alternatives per token. `provider` restricts who may serve, `preferences` say who should,
    `cache_key` names requests that begin alike, and `hedge` wants a second provider asked when the first is late. `raw`
    is the prompt where there is no conversation. `n` answers are wanted, each a purchase of its own. `tools` are shown
    to the model, `constraint` is what its answer is held to. With `vector` no answer is wanted, but the prompt's
    vector. `prompt_name` and `limit_name` are what the body calls the prompt and the bound of its answer. `fallbacks`
    are models that may answer instead, in the order in which they are tried.
    """

    model: str
    messages: tuple[Message, ...] = ()
    raw: str | tuple[int, ...] | None = None
    n: int = 1
    temperature_milli: int = TEMPERATURE_MILLI_DEFAULT
    top_p_milli: int = TOP_P_OFF
    top_k: int = TOP_K_OFF
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None
    min_level: int = MIN_LEVEL_DEFAULT
    audit_policy: int = AUDIT_POLICY_DEFAULT
    provider: Address | None = None
    tools: tuple[Tool, ...] = ()
    constraint: Constraint | None = None
    preferences: Preferences | None = None
    cache_key: str | None = None
    hedge: bool = False
    prompt_name: str = "messages"
    limit_name: str = "max_tokens"
    fallbacks: tuple[str, ...] = ()
    vector: VectorForm | None = None

    def message_objects(self) -> list[dict[str, Json]]:
        """The messages as plain objects, the form that templates and the context take."""
        return [message.encode_json() for message in self.messages]

    def prompt_ids(self, render: Render, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The token ids that are bought.

        Args:
            render: the model's chat template with its tokenizer.
            tokenizer: the model's; raw text is encoded plainly, after the beginning that the model's prompts have.

        Raises:
            Invalid: the template refuses the messages, or an id is not in the vocabulary.
        """
        if self.raw is None:
            return render(self.message_objects(), self.tools)
        if isinstance(self.raw, str):
            return tokenizer.encode_prompt(self.raw)
        highest = max(self.raw, default=0)
        if highest >= tokenizer.vocabulary_size:
            raise InvalidParameter(
                self.prompt_name, f"token {highest} is outside the vocabulary of {tokenizer.vocabulary_size}"
            )
        return self.raw

    def context(self, template_hash: bytes, tokenizer_hash: bytes) -> bytes:
        """What the prompt is made of as canonical JSON, which the ask binds by a salted hash.

        Args:
            template_hash: 32 bytes, from the model record; it renders conversations.
            tokenizer_hash: the same; it encodes raw text.
        """
        if self.raw is None:
            return context_of(self, template_hash)
        return encode_raw_context(RawContext(self.raw, tokenizer_hash))

    def params(self, context_tokens: int, prompt_tokens: int) -> Params:
        """The sampling parameters that are signed, given the room that the prompt leaves.

        Args:
            context_tokens: the model record's context.
            prompt_tokens: ids of the rendered prompt.

        Raises:
            InvalidParameter: prompt and output do not fit the context.
        """
        if self.vector is not None:
            if prompt_tokens > context_tokens:
                says = f"the input has {prompt_tokens} tokens, but the context holds {context_tokens}"
                raise InvalidParameter(self.prompt_name, says, "context_length_exceeded")
            return EMBEDDING_PARAMS
        room = context_tokens - prompt_tokens
        wanted = 1 if self.max_tokens is None else self.max_tokens
        if wanted > room:
            raise InvalidParameter(
                self.prompt_name if self.max_tokens is None or room < 1 else self.limit_name,
                f"the prompt has {prompt_tokens} tokens and at least {wanted} are wanted, "
                f"but the context holds {context_tokens}",
                "context_length_exceeded",
            )
        return Params(
            temperature_milli=self.temperature_milli,
            top_k=self.top_k,
            top_p_milli=self.top_p_milli,
            max_tokens=min(MAX_TOKENS_DEFAULT, room) if self.max_tokens is None else self.max_tokens,
            stop_ids=(),
            stop_strings=self.stop,
            mask_hash=ZERO32 if self.constraint is None else self.constraint.mask_hash(),
        )


def context_of(question: Question, template_hash: bytes, now: str = "") -> bytes:
    """The context of a conversation as canonical JSON.

    Args:
        question: a conversation.
        template_hash: 32 bytes, from the model record.
        now: the text that the template shows as the current date; empty where it shows none.
    """
    tools = encode_tools(question.tools) if question.tools else None
    return encode_context(Context(tuple(question.message_objects()), now, template_hash, tools))


@dataclass(frozen=True, slots=True)
class Part:
    """Which purchase of which request, where that is not the one answer of a chat completion.

    Attributes:
        api: by which door the body came.
        index: of the choice; with n answers to each of several prompts, prompts come first.
        history: turns before those of the body, which the body names and does not hold.
    """

    api: Api
    index: int = 0
    history: tuple[Message, ...] = ()

    @property
    def is_plain_chat(self) -> bool:
        """The one answer of a chat completion, for which papers name no part."""
        return self == Part(Api.CHAT)

    def encode_json(self) -> dict[str, Json]:
        """As answers and answer files carry it."""
        history: list[Json] = [turn.encode_json() for turn in self.history]
        return {"api": str(self.api), "index": self.index, "history": history}


PLAIN_CHAT = Part(Api.CHAT)


def hash_request(part: Part, client_nonce: bytes, body: bytes) -> bytes:
    """The ask's client digest: binds the exact body, the door that it came by and which answer to it this is."""
    if part.is_plain_chat:
        return hash_client(client_nonce, body)
    return hash_part(client_nonce, body, part.api, part.index)
