// Running sums of all sixteen lanes, from those of single registers that an ISA's header gives.

struct Sum {
  SumPart part[kParts];
};

PARETOBIT_INLINE Sum no_sum() {
  Sum r;
  PARETOBIT_EACH r.part[p] = no_sum_part();
  return r;
}

template <int kTop>
PARETOBIT_INLINE void add_dot(Sum& sum, const Bytes& codes, const Quad& quad) {
  PARETOBIT_EACH add_dot<kTop>(sum.part[p], codes.part[p], quad);
}

template <int kTop>
PARETOBIT_INLINE void spill(Sum& sum, int quads) {
  PARETOBIT_EACH spill<kTop>(sum.part[p], quads);
}

template <int kTop>
PARETOBIT_INLINE Ints total(const Sum& sum, int32_t correction) {
  Ints r;
  PARETOBIT_EACH r.part[p] = total<kTop>(sum.part[p], correction);
  return r;
}
