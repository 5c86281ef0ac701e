"""Floor 1: decides when. Knows no model and no backend; receives a callable, a cost table and a clock.

tickets    a request and what became of it
costs      what a batch costs on an engine: measured, then corrected as it runs
admission  quotas of tenants
prediction whether a request would finish in time
fairness   virtual time between tenants, charged in device milliseconds
queue      tiers with least shares; earliest deadline inside a tenant
batching   what an idle worker takes
ladder     which rung serves: breakers, canaries, overrides
routes     a way through a ladder, and its costs
workers    what runs where, and when there is room
scheduler  joins them
statistics what it tells of itself
"""
