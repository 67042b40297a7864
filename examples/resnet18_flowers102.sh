#!/bin/sh
# ResNet18 on Flowers102 with the masks of arXiv 2309.06626: single positions at random, alike in all
# convolutions but those of 1x1, drawn anew while the sparsity rises, and the bias where they mask.
# Optimizer and epochs are a choice for this data set, not the paper's.
#
#     examples/resnet18_flowers102.sh --sparsity 0.3 --out runs/flowers-0.3
#
# downloads data and weights, and takes further options, which win over those below.
exec semisparse train \
    --model torchvision/resnet18 --weights DEFAULT \
    --data flowers102 --download --workers 4 \
    --sparsity 0.2 --fill bias --masks random --block 1 --skip 1x1 \
    --sparsity-begin 0.1 --sparsity-end 0.9 --selection best_loss \
    --epochs 100 --batch-size 64 --optimizer sgd --learning-rate 0.01 --schedule linear \
    --weight-decay 5e-4 --label-smoothing 0.1 --clip-gradient 10 \
    --out runs/resnet18-flowers102 "$@"
