// Someone else's array.
#pragma once

#include <cstddef>

namespace paretobit {

template <class T>
struct Span {
  const T* data = nullptr;
  size_t size = 0;
};

}  // namespace paretobit
