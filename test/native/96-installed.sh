#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# The library as its users get it: installed somewhere, found by pkg-config, compiled against as C and as C++, and the examples run.
# 96-installed.sh BUILD SOURCE CMAKE CC CXX SANITIZE: CXX and SANITIZE may be empty.
build=$1 source=$2 cmake=$3 cc=$4 cxx=$5 sanitize=${6:+-fsanitize=$6}
work=$(mktemp -d ./installed-XXXXXX) || exit 1
trap 'rm -rf "$work"' EXIT
work=$(cd "$work" && pwd)
number=0
failed=0

# check NAME COMMAND ...: one test case; its output is shown where it fails.
check() {
	name=$1
	shift
	number=$((number + 1))
	if "$@" >"$work/output" 2>&1; then
		echo "ok $number - $name"
	else
		sed 's/^/# /' "$work/output"
		echo "not ok $number - $name"
		failed=1
	fi
}

# skip NAME REASON
skip() {
	number=$((number + 1))
	echo "$2"
	echo "not ok $number # SKIP $1"
}

# prints COMMAND LINES: what it prints is that.
prints() {
	wanted=$1
	shift
	got=$("$@" 2>&1) && [ "$got" = "$wanted" ] && return
	printf 'wanted:\n%s\ngot:\n%s\n' "$wanted" "$got"
	return 1
}

warnings='-Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror'
compile() { # of C, to $work/NAME
	# shellcheck disable=SC2046,SC2086
	$cc -std=c11 -D_POSIX_C_SOURCE=200809L $warnings -pedantic $sanitize -o "$work/$1" "$2" $(pkg-config --cflags --libs libpmemset)
}

compile_cxx() {
	# shellcheck disable=SC2046,SC2086
	$cxx -x c++ -std=c++11 -Wall -Wextra -Werror -pedantic -fsyntax-only $(pkg-config --cflags libpmemset) "$1"
}

exports() { # every function that the header declares, at the version that programs are linked against
	wanted=$(grep -oE '^[a-z].*[ *]pmemset_[a-z0-9_]+\(' "$work/usr/include/libpmemset.h" | grep -v '^typedef' | grep -oE 'pmemset_[a-z0-9_]+\(' |
		tr -d '(' | sort)
	got=$(nm -D --defined-only "$library" | grep -oE 'pmemset_[a-z0-9_]+@@LIBPMEMSET_1\.0$' | cut -d@ -f1 | sort)
	[ "$(echo "$wanted" | wc -l)" -gt 50 ] && [ "$wanted" = "$got" ] && return
	printf 'declared:\n%s\nexported:\n%s\n' "$wanted" "$got"
	return 1
}

echo 1..11
check 'it is installed' "$cmake" --install "$build" --prefix "$work/usr"
library=$(find "$work/usr" -name libpmemset.so.1)
PKG_CONFIG_PATH=$(dirname "$library")/pkgconfig
LD_LIBRARY_PATH=$(dirname "$library")
export PKG_CONFIG_PATH LD_LIBRARY_PATH
check 'pkg-config finds it' prints 1.0.0 pkg-config --modversion libpmemset
check 'it exports what the header declares' exports
check 'a program compiles' compile user "$source/test/native/user.c"
check 'and runs' prints 'all is well' "$work/user" "$work"
if [ -n "$cxx" ]; then
	check 'its header is C++ as well' compile_cxx "$source/test/native/user.c"
else
	skip 'its header is C++ as well' 'no C++ compiler is here'
fi
for example in coalesce log events; do
	check "the example $example compiles" compile "$example" "$source/native/examples/$example.c"
done
check 'coalesce and log print' prints '2097152 bytes, the second file begins with ", two files"
196608 bytes are mapped, from record 64' sh -c "$work/coalesce $work/a $work/b && $work/log $work/c"
check 'events prints' prints '1 part add 65536
2 set 100
3 flush 100
4 drain 0
5 part remove 65536' "$work/events" "$work"
exit $failed
