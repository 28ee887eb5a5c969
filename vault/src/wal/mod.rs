//! The write-ahead log: walking its records, sealing its ranges, finding a target in it.
