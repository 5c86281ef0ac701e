"""Programs that serve one engine over the Open Inference Protocol, each run by an interpreter that has its library.

python FILE ENGINE HTTP_PORT GRPC_PORT BATCH
"""
