"""Floor 6: the doors. Each room of this folder gives the routes of one protocol; `app.py` joins them on one House."""
