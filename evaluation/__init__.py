"""One model in, scores out: task definitions, lm-eval's evaluator and the execution of SQL."""
