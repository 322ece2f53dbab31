"""The Trainer of Hugging Face: a small Llama that learns to count."""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hypergradient import Hyperoptimizer
from hypergradient.callbacks import for_trainer

counting = (torch.arange(512).view(-1, 1) + torch.arange(16)) % 64
data = [{"input_ids": line, "labels": line} for line in counting]

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, use_cache=False
)
model = LlamaForCausalLM(config)

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=2,
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",  # the optimizer needs no schedule; the Trainer's own default is a linear decay
        eval_strategy="epoch",
        save_strategy="no",
        logging_steps=16,
        report_to="none",
        use_cpu=True,  # not for a GPU
    )
    optimizer = Hyperoptimizer(model.parameters())
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:64], optimizers=(optimizer, None))
    trainer.add_callback(for_trainer(trainer))  # logs what the optimizer has learned
    trainer.train()  # calls optimizer.train() and optimizer.eval() where they belong

print(optimizer)
