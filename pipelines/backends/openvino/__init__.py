"""The recipe that runs parts with OpenVINO on CPUs: in bfloat16, or in int8 quantised by NNCF."""
