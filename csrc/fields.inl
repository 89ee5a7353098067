// Bit fields of bytes.

#if !PARETOBIT_FIELDS
// Every byte shifted right by kShift (left where negative), then masked: bits that cross into a neighbour go.
template <int kShift, int kMask>
PARETOBIT_INLINE Octets bits(Octets v) {
  constexpr int kRight = kShift > 0 ? kShift : 0, kLeft = kShift < 0 ? -kShift : 0;
  if constexpr (kShift >= 0 && kMask == 255 >> kRight) return v >> kRight;
  if constexpr (kShift < 0 && kMask == (255 << kLeft & 255)) return v << kLeft;
  const Shorts wide = (Shorts)v;
  const Shorts moved = wide >> kRight << kLeft;
  return (Octets)(moved & (Shorts)(uint16_t(kMask * 257) - Shorts{}));
}
#endif

template <int kShift, int kMask>
PARETOBIT_INLINE Bytes field(const Bytes& a) {
  Bytes r;
  PARETOBIT_EACH r.part[p] = bits<kShift, kMask>(a.part[p]);
  return r;
}
