"""Fine-tuning on downstream tasks: the modules of `eval/finetune.py`."""
