"""Documents to batches: token shards, span corruption and its relatives, deterministic loading."""
