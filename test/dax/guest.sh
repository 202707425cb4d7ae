# SPDX-License-Identifier: BSD-3-Clause
#
# What the guest does: a command a line, in base64, from the second serial port; back go its status and, in base64, all that it printed. The
# first port is the kernel's.
exec <>/dev/ttyS1 >&0 2>/dev/ttyS0
stty raw -echo
echo ready
while read -r line; do
	said=$(bash -c "$(base64 -d <<<"$line")" 2>&1 </dev/null)
	status=$?
	printf '%s %s\n' "$status" "$(base64 -w 0 <<<"$said")"
done
