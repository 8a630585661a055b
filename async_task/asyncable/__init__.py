"""Models that are their own job: a row says how far its work is, and a clock sees that it is done."""
