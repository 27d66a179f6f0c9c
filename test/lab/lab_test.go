package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"
	"os"

	"github.com/stretchr/testify/require"

	"vmm/test/lab"
)

func TestLab(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := lab.Start(ctx, lab.Config{Console: os.Stderr})
	require.NoError(t, err)
	defer l.Close()
	out, err := l.Output(ctx, lab.Shell("uname -r; ls -l /dev/kvm; ls /dev/net; cat /sys/module/kvm_amd/parameters/npt; mount; lsmod; free"))
	require.NoError(t, err)
	t.Log(out)
	in := strings.Repeat("0123456789abcdef", 65536)
	start := time.Now()
	got, err := l.Output(ctx, &lab.Cmd{Args: []string{"cat"}, Stdin: strings.NewReader(in)})
	require.NoError(t, err)
	require.Equal(t, in, got)
	t.Log(time.Since(start))
}
