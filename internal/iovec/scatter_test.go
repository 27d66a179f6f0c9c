package iovec_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vmm/internal/iovec"
)

func TestScatter(t *testing.T) {
	a, b, c := make([]byte, 2), []byte{}, make([]byte, 4)
	to := iovec.NewScatter(vectors(a, b, c))
	to.Put([]byte("h"))
	to.Put(nil)
	to.Put([]byte("ell"))
	require.Equal(t, 4, to.Len())
	to.Put([]byte("o, world"))
	require.Equal(t, 6, to.Len(), "the rest has no place")
	require.Equal(t, "he", string(a))
	require.Equal(t, "llo,", string(c))
}
