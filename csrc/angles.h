// Cosine and sine in double precision from operations that every machine rounds alike; C libraries differ in
// last bits.
#pragma once

#include <cstdint>

namespace paretobit {

// Of an angle in [0, 2^50] radians: error below 2^-52 up to 10^6 radians, then below the spacing of doubles
// there.
inline void cosine_sine(double angle, double& cosine, double& sine) {
  const int64_t quarter = int64_t(angle * 0.63661977236758134308 + 0.5);  // turns of π/2, the nearest
  const double n = double(quarter);
  // π/2 in three parts of 33 bits, whose products with n < 2^20 are exact (fdlibm, e_rem_pio2.c).
  const double r = ((angle - n * 1.57079632673412561417e+00) - n * 6.07710050630396597660e-11) -
                   n * 2.02226624871116645580e-21;
  // fdlibm's polynomials on |r| <= π/4 (k_sin.c, k_cos.c).
  const double z = r * r;
  const double s =
      r + r * z *
              (-1.66666666666666324348e-01 +
               z * (8.33333333332248946124e-03 +
                    z * (-1.98412698298579493134e-04 +
                         z * (2.75573137070700676789e-06 +
                              z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
  const double c = (1.0 - 0.5 * z) +
                   z * z *
                       (4.16666666666666019037e-02 +
                        z * (-1.38888888888741095749e-03 +
                             z * (2.48015872894767294178e-05 +
                                  z * (-2.75573143513906633035e-07 +
                                       z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
  const bool swap = quarter & 1;
  cosine = swap ? s : c;
  sine = swap ? c : s;
  if ((quarter + 1) & 2) cosine = -cosine;
  if (quarter & 2) sine = -sine;
}

}  // namespace paretobit
