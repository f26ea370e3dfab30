"""The embedded data: public-domain drawings, and everything that is composed from them."""
