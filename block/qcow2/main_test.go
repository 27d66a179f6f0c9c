package qcow2

import (
	"testing"

	"vmm/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
