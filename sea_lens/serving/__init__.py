"""The edit outside TransformerLens: vLLM's engine and its OpenAI-compatible server run a model with an editor.

`serving.attach(llm, editor)` edits a `vllm.LLM`; `SEA_LENS_EDITOR=folder vllm serve MODEL` serves the edited model. Nothing
of vLLM is imported before it is there. A plain Hugging Face model needs none of this: `editor.attached(model)`.
"""

from sea_lens.serving.attachment import Attachment, attach

__all__ = ["Attachment", "attach"]
