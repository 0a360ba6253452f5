"""Models from elsewhere in, ours out: Hugging Face folders, GGUF files, word vectors, evaluation harnesses."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["tokenizers"],
    {
        "engine": ["LlamaGenerator"],
        "incoming": ["Imported", "from_state_dict", "import_model"],
        "outgoing": ["Exported", "export_folder", "export_gguf"],
    },
)
