"""The zoo: fingerprints of many adapters in one index, and what can be asked of it.

A fingerprint is a sketch of an adapter's whole delta, a few kilobytes made from the factors alone, whose inner products
estimate those of the deltas. An index keeps fingerprints and what the Hub says of each adapter in Parquet files, and
answers which adapters are near to one, which are orthogonal to it, and which form families.
"""
