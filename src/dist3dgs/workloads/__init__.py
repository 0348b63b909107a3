"""Programs of others as scaling points: run on each rank or node, read for their figures of merit. No torch here.

`resnet`, `transformer` and `planner` are small applications of the usual kind, which know nothing of this package.
"""
