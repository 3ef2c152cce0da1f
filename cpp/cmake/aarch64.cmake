# Cross-compiles for Linux on 64 bit ARM:
#   cmake -S cpp -B build-arm64 -DCMAKE_TOOLCHAIN_FILE=$PWD/cpp/cmake/aarch64.cmake
# Debian: apt-get install g++-aarch64-linux-gnu; qemu-user-static runs the programs.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
