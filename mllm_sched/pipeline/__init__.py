"""The multimodal model, taken apart: encoders and what they cost."""
