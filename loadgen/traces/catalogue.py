"""Public traces: where their owners keep them. A checksum is pinned where the file has been seen."""

from dataclasses import dataclass

_AZURE_2023 = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data/"
_AZURE_2024 = "https://azurepublicdatasettraces.blob.core.windows.net/azurellminfererencetrace/"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release/traces/"
_BURSTGPT = "https://github.com/HPMLL/BurstGPT/releases/download/v1.1/"
_SPLITWISE = "CC-BY 4.0; Patel et al., Splitwise, ISCA 2024"
_DYNAMO = "CC-BY 4.0; Stojkovic et al., DynamoLLM, HPCA 2025"
_FAST = "Apache-2.0; Qin et al., Mooncake, FAST 2025"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    url: str
    about: str
    licence: str
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


SOURCES = {
    "azure-conv-2023": Source(
        url=_AZURE_2023 + "AzureLLMInferenceTrace_conv.csv",
        about="conversation, 19,366 requests in an hour",
        licence=_SPLITWISE,
        size_bytes=719_188,
        sha256="2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    ),
    "azure-code-2023": Source(
        url=_AZURE_2023 + "AzureLLMInferenceTrace_code.csv",
        about="code completion, 8,819 requests in an hour",
        licence=_SPLITWISE,
        size_bytes=320_117,
        sha256="54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    ),
    "azure-conv-2024": Source(
        url=_AZURE_2024 + "AzureLLMInferenceTrace_conv_1week.csv",
        about="conversation, 27.3 million requests in a week",
        licence=_DYNAMO,
    ),
    "azure-code-2024": Source(
        url=_AZURE_2024 + "AzureLLMInferenceTrace_code_1week.csv",
        about="code completion, 16.8 million requests in a week",
        licence=_DYNAMO,
    ),
    "mooncake-conversation": Source(
        url=_MOONCAKE + "conversation_trace.jsonl",
        about="chats, 12,031 requests in an hour, with shared blocks",
        licence=_FAST,
        size_bytes=3_029_533,
    ),
    "mooncake-synthetic": Source(
        url=_MOONCAKE + "synthetic_trace.jsonl",
        about="long prompts, 3,993 requests in 17 minutes, with shared blocks",
        licence=_FAST,
        size_bytes=1_136_313,
        sha256="bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
    ),
    "mooncake-toolagent": Source(
        url=_MOONCAKE + "toolagent_trace.jsonl",
        about="tools and agents, 23,608 requests, with shared blocks",
        licence=_FAST,
    ),
    "burstgpt": Source(
        url=_BURSTGPT + "BurstGPT_without_fails_2.csv",
        about="ChatGPT and GPT-4 calls, 3.8 million requests in two months",
        licence="CC-BY 4.0; Wang et al., BurstGPT, arXiv 2401.17644",
    ),
}
