"""LangChain's standard tests of chat models, for `pytest tests/server/langchain_standard.py` with PARETOBIT_URL set.

What they want of a model's wits, not of a server, is left out: see docs/server.md.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

TWICE = "a model of 135 million parameters makes its call twice where parallel calls let it"


class TestServer(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        url = os.environ["PARETOBIT_URL"]
        return {
            "base_url": f"{url}/v1",
            "api_key": "any",
            "model": "smollm2",
            "temperature": 0,
            "max_tokens": 800,
            "frequency_penalty": 0.7,
            "stream_usage": True,
        }

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def tool_choice_value(self) -> str:
        return "any"

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "smollm2"

    @pytest.mark.xfail(reason="a model of 135 million parameters that no schema leads forgets a field")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)

    @pytest.mark.xfail(reason="a model of 135 million parameters that is free to does not think of its tools")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason=TWICE)
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @pytest.mark.xfail(reason=TWICE)
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @pytest.mark.xfail(reason=TWICE)
    def test_tool_calling_with_no_arguments(self, model: BaseChatModel) -> None:
        super().test_tool_calling_with_no_arguments(model)
