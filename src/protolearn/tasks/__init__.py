"""Tasks: one module a question put to a model, protocol and metrics together.

- ``classify``, ``verify``, ``doctor``: how often it is right, whether it is what its folder says, what ails it.
- ``audit``: what its explanations are worth; ``audit_marks`` carries people's marks over to its inputs.
- ``retrieve``: which training cases are most like a case or, in ``prototype_cases``, like a prototype.
- ``repair``: what it would be without prototypes that say the same or nothing, by the steps in ``repair_steps``.
- ``associate``: whether prototypes go with labels it was not trained on, read by ``outside_labels``.
- ``anomaly``: whether a case is unlike all normal ones, and where; ``anomaly_memory`` and ``anomaly_inp`` are the ways.

What a task returns stands beside it in a module that ends in ``_result`` where it is long.
"""
