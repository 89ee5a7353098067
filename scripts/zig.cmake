# zig c++ for the processor PARETOBIT_ARCH and glibc 2.28, which is what manylinux_2_28 means.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{PARETOBIT_ARCH})
set(CMAKE_CXX_COMPILER $ENV{PARETOBIT_ZIG} c++ -target $ENV{PARETOBIT_ARCH}-linux-gnu.2.28)
set(CMAKE_CXX_ARCHIVE_CREATE "$ENV{PARETOBIT_ZIG} ar qcs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
# nanobind takes it for granted, and neither libc++ nor the stable ABI's Python.h brings it.
set(CMAKE_CXX_FLAGS_INIT "-include stdio.h")
