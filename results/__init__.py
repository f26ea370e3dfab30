"""Records of what was measured, and the tables and pages that are computed from them."""
