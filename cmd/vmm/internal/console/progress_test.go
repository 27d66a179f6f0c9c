package console

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// screen is what a terminal has been sent.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out screen
		p := newProgress(&out)
		p.Show("reading")
		time.Sleep(progressDelay - 1)
		synctest.Wait()
		require.Empty(t, out.String(), "too early")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.Equal(t, "\r\x1b[Kreading (0 s)", out.String())
		p.Show("booting")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"", "reading (0 s)", "booting (0 s)", "booting (1 s)", "booting (2 s)"}, strings.Split(out.String(), "\r\x1b[K"))
		p.End()
		end := out.String()
		require.True(t, strings.HasSuffix(end, "\r\x1b[K"))
		p.Show("late")
		p.End()
		time.Sleep(time.Minute)
		require.Equal(t, end, out.String())
	})
}

func TestProgressThatIsOverSoonWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out)
		p.Show("reading")
		p.End()
		require.Empty(t, out.String())
	})
}

func TestProgressNeedsATerminal(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	defer f.Close()
	for _, w := range []io.Writer{f, &bytes.Buffer{}} {
		p := NewProgress(w)
		require.Nil(t, p)
		p.Show("nothing")
		p.End()
	}
}

func TestOnFirstWrite(t *testing.T) {
	a, b := io.Pipe()
	calls := 0
	line := OnFirstWrite(struct {
		io.Reader
		io.WriteCloser
	}{a, b}, func() { calls++ })
	go func() {
		_, _ = io.WriteString(line, "one")
		_, _ = io.WriteString(line, "two")
		_ = line.Close()
	}()
	all, err := io.ReadAll(line)
	require.NoError(t, err)
	require.Equal(t, "onetwo", string(all))
	require.Equal(t, 1, calls)
}
