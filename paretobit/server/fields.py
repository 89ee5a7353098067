"""What may stand in a request. Every field that is not here is refused by its name; null means that it is left out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_CHOICES = 16
MOST_PROMPTS = 128
MOST_MESSAGES = 2048
MOST_TOOLS = 128
MOST_LIKELY = 20
MOST_BIASED = 1024

Text = Annotated[str, Field(max_length=1 << 22)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Schema = dict[str, Any]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, given: Any) -> Any:
        """Clients send back what they got, with many fields that are null."""
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


class StreamOptions(Strict):
    include_usage: bool | None = None


class Common(Strict):
    """How tokens are chosen, and how the answer comes. Ranges are OpenAI's."""

    model: Annotated[str, Field(max_length=512)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None  # who asks: accepted, and used for nothing


class Sampled(Common):
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MOST_BIASED),
        ]
        | None
    ) = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None


class Part(Strict):
    type: Literal["text", "input_text", "output_text"]
    text: Text


class CalledFunction(Strict):
    name: Name
    arguments: Text


class Call(Strict):
    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Strict):
    """name: goes to the model's template. refusal, annotations: as answers have them, empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[Call], Field(max_length=MOST_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class Function(Strict):
    name: Name
    description: Annotated[str, Field(max_length=16384)] | None = None
    parameters: Schema | None = None
    strict: bool | None = None  # arguments obey their schema in any case


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: Name


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    name: Name
    schema_: Annotated[Schema, Field(alias="schema")]
    description: Annotated[str, Field(max_length=16384)] | None = None
    strict: bool | None = None  # the answer obeys it in any case


class ResponseFormat(Strict):
    """regex and grammar (Lark, as llguidance reads it) are this server's own."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    regex: Annotated[str, Field(max_length=1 << 14)] | None = None
    grammar: Annotated[str, Field(max_length=1 << 16)] | None = None


class ChatRequest(Sampled):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=1 << 20)]


def _empty(value: str | None) -> str | None:
    if value:
        raise ValueError("suffix is not supported: these models go on from a text, they do not fill one in")
    return value


class CompletionRequest(Sampled):
    """best_of: as many as n, or nothing is left to choose from."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None
    suffix: Annotated[str | None, AfterValidator(_empty)] = None
    response_format: ResponseFormat | None = None


class ResponseText(Strict):
    class Format(Strict):
        type: Literal["text", "json_object", "json_schema"]
        name: Name | None = None
        schema_: Annotated[Schema | None, Field(alias="schema")] = None
        description: Annotated[str, Field(max_length=16384)] | None = None
        strict: bool | None = None

    format: Format | None = None


class Item(Strict):
    """A message, a call or a call's output, as /v1/responses lists them."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | Annotated[list[dict[str, Any]], Field(max_length=256)] | None = None
    id: Annotated[str, Field(max_length=256)] | None = None
    status: Annotated[str, Field(max_length=32)] | None = None
    call_id: Annotated[str, Field(max_length=256)] | None = None
    name: Name | None = None
    arguments: Text | None = None
    output: Text | None = None


class ResponseTool(Strict):
    type: Literal["function"]
    name: Name
    description: Annotated[str, Field(max_length=16384)] | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class ResponseNamed(Strict):
    type: Literal["function"]
    name: Name


class ResponsesRequest(Common):
    """Nothing is stored, whatever `store` says, and so `previous_response_id` is refused; store: true is too."""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: ResponseText | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamed | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None


class EmbeddingsRequest(Strict):
    model: Annotated[str, Field(max_length=512)] | None = None
    input: Text | Tokens | list[Text] | list[Tokens]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class TokenizeRequest(Strict):
    model: Annotated[str, Field(max_length=512)] | None = None
    content: Text
    add_special: bool = True


class DetokenizeRequest(Strict):
    model: Annotated[str, Field(max_length=512)] | None = None
    tokens: Tokens
