"""Fine-tuning on downstream tasks: what `eval/finetune.py` is made of."""
