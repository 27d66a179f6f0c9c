package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRNG puts what the guest's random number generator gives to the tests of FIPS 140-2.
func TestRNG(t *testing.T) {
	t.Parallel()
	g := guest{args: []string{"-rng"}}.start(t, ownHost(t))
	require.Regexp(t, `^virtio_rng\.\d+\n$`, g.run("cat /sys/class/misc/hw_random/rng_current"))
	const blocks, bitsPerBlock = 200, 20_000
	check := func() {
		t.Helper()
		// Of good bits, some eight blocks in ten thousand fail.
		report, _ := g.try(fmt.Sprintf("dd if=/dev/hwrng bs=%d count=%d iflag=fullblock status=none | rngtest -c %d 2>&1 | grep FIPS",
			bitsPerBlock/8, blocks+1, blocks))
		require.LessOrEqual(t, countIn(t, report, "failures"), 3, report)
		require.GreaterOrEqual(t, countIn(t, report, "successes"), blocks-3, report)
	}
	check()
	g.run("head -c 16 /dev/hwrng >/tmp/1; head -c 16 /dev/hwrng >/tmp/2; ! cmp -s /tmp/1 /tmp/2")
	require.Equal(t, "1\n", g.run("dd if=/dev/hwrng bs=1 count=1 status=none | wc -c"))
	g.run(`cd /sys/bus/virtio/drivers/virtio_rng; device=$(basename virtio[0-9]*)
for i in 1 2 3 4 5; do echo $device >unbind; echo $device >bind; head -c 100 /dev/hwrng >/dev/null; done`)
	check()
	checkLog(t, g)
	require.Zero(t, g.end("poweroff"))
}

// countIn returns the number after a word in one of rngtest's lines.
func countIn(t *testing.T, report, what string) int {
	t.Helper()
	m := regexp.MustCompile(what + `: (\d+)`).FindStringSubmatch(report)
	require.NotNil(t, m, report)
	n, err := strconv.Atoi(m[1])
	require.NoError(t, err)
	return n
}
