"""Audits: whether explanations, scores and prototypes deserve trust, as functions of what a model put out.

- ``subject``, ``look``, ``marks``: what an audit sees: a model, what it put out for a batch, what people marked in it.
- ``metric``, ``metrics``, ``result``, ``co12``: the contract of a metric, all of them, what an audit found, and which
  property of an explanation each metric measures.
- ``bootstrap``, ``cases``, ``pairs``, ``correlation``, ``noise``, ``blanking``, ``heat``: what several metrics need.
- Everything else is one family of figures each, as pure functions on tensors; the metric of the same name in
  ``metrics`` runs it over an audit. ``association`` and its parts ask whether prototypes go with labels from outside.

:func:`protolearn.tasks.audit.audit` runs them; :mod:`protolearn.explain.audit_page` writes them down.
"""
