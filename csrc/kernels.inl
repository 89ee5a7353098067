// Every algorithm once, for the ISA whose lanes and operations were included before.
#include "trits.inl"
#include "formats.inl"
#include "multiply.inl"
#include "inputs.inl"
#include "layers.inl"
#include "search.inl"
#include "feedback.inl"
#include "read.inl"
