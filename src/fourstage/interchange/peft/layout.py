"""Names of files and tensors in a PEFT folder."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# In front of the module's own name in Hugging Face's model.
PREFIX = "base_model.model."
# Our name of a part -> what it is called in the file.
PARTS = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "lora_magnitude_vector": "lora_magnitude_vector",
}
