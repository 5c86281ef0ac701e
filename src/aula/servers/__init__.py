"""Floor 6: the doors. Each room of this folder gives the routes of one protocol; `app.py` joins them on one House.

serving     one process, from the first load to the last turn
house       what every door shares
callers     who stands at the door, and what he may ask for
keys        API keys, and the doorman who reads them
guests      codes that a teacher shows, for those who have no key
front       before every door: limits, origins, the log
limits      how much a client may send, and how slowly
origins     which pages may call, and by which names
wire        uvicorn's connection, made patient
faults      errors as HTTP tells them
health      /livez, /readyz, /metrics
describing  /docs and /openapi.json
traffic     what is under way, and the end of it
turn_log    the recent turns
logs        one line for each request
notices     what systemd is told
openai  realtime  kserve  pages   a door each
"""
