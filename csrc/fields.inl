// Bit fields of bytes.

#if !PARETOBIT_FIELDS
// Every byte shifted right by kShift (left where negative), then masked: bits that cross into a neighbour go.
template <int kShift, int kMask>
PARETOBIT_INLINE Bytes field(const Bytes& a) {
  Bytes r;
  PARETOBIT_EACH {
    const Shorts wide = (Shorts)a.part[p];
    const Shorts moved = kShift >= 0 ? wide >> (kShift > 0 ? kShift : 0) : wide << (kShift < 0 ? -kShift : 0);
    r.part[p] = (Octets)(moved & (Shorts)(uint16_t(kMask * 257) - Shorts{}));
  }
  return r;
}
#endif
