package acpi

import (
	"encoding/binary"
	"math/bits"
)

// Offsets in the FADT, from the table's start (ACPI 6.5 §5.2.9).
const (
	fadtFirmwareCtrl = 36
	fadtDSDT         = 40
	fadtSCIInt       = 46
	fadtPM1aEvent    = 56
	fadtPM1aControl  = 64
	fadtPMTimer      = 76
	fadtPM1EventLen  = 88
	fadtPM1CtrlLen   = 89
	fadtPMTimerLen   = 91
	fadtC2Latency    = 96
	fadtC3Latency    = 98
	fadtCentury      = 108
	fadtBootArch     = 109
	fadtFlags        = 112
	fadtResetReg     = 116
	fadtResetValue   = 128
	fadtMinor        = 131
	fadtXDSDT        = 140
	fadtXPM1aEvent   = 148
	fadtXPM1aControl = 172
	fadtXPMTimer     = 208
	fadtSize         = 276
)

// FADT flags (table 5.10).
const (
	flagWBINVD      = 1 << 0  // WBINVD works
	flagProcC1      = 1 << 2  // C1 on all processors
	flagNoSlpButton = 1 << 5  // there is no fixed sleep button
	flagNoFixRTC    = 1 << 6  // the RTC's wake status is not in fixed registers
	flagTimer32     = 1 << 8  // the PM timer has 32 bits
	flagResetReg    = 1 << 10 // there is a reset register
)

// Boot architecture flags (table 5.11). The 8042 bit stays clear: with it Linux would look for a keyboard by probing.
const (
	bootLegacyDevices = 1 << 0 // COM1 and such
	bootNoVGA         = 1 << 2
)

const (
	noCState     = 0xfff // a latency that means: no such state
	centuryIndex = 0x32  // in CMOS RAM
)

// fadt is the fixed ACPI description table. The power button is the fixed one, as the flag for a control-method button
// is clear; SMI_CMD is zero, so the machine is in ACPI mode already.
func fadt(cfg Config, facsAddr, dsdtAddr uint64) []byte {
	le := binary.LittleEndian
	t := make([]byte, fadtSize)
	le.PutUint32(t[fadtFirmwareCtrl:], uint32(facsAddr)) // and X_FIRMWARE_CTRL is zero: not both
	le.PutUint32(t[fadtDSDT:], uint32(dsdtAddr))
	le.PutUint64(t[fadtXDSDT:], dsdtAddr)
	le.PutUint16(t[fadtSCIInt:], uint16(cfg.SCI))
	for _, block := range []struct {
		old, oldLen, ext int
		port             uint16
		size             uint8
	}{
		{fadtPM1aEvent, fadtPM1EventLen, fadtXPM1aEvent, cfg.PM.Event, 4},
		{fadtPM1aControl, fadtPM1CtrlLen, fadtXPM1aControl, cfg.PM.Control, 2},
		{fadtPMTimer, fadtPMTimerLen, fadtXPMTimer, cfg.PM.Timer, 4},
	} {
		le.PutUint32(t[block.old:], uint32(block.port))
		t[block.oldLen] = block.size
		putIORegister(t[block.ext:], block.port, block.size)
	}
	le.PutUint16(t[fadtC2Latency:], noCState)
	le.PutUint16(t[fadtC3Latency:], noCState)
	t[fadtCentury] = centuryIndex
	le.PutUint16(t[fadtBootArch:], bootLegacyDevices|bootNoVGA)
	le.PutUint32(t[fadtFlags:], flagWBINVD|flagProcC1|flagNoSlpButton|flagNoFixRTC|flagTimer32|flagResetReg)
	putIORegister(t[fadtResetReg:], cfg.Reset.Port, 1)
	t[fadtResetValue] = cfg.Reset.Value
	t[fadtMinor] = 5
	return table("FACP", 6, t[headerSize:])
}

// putIORegister writes a generic address structure (§5.2.3.2) for a register in I/O space.
func putIORegister(t []byte, port uint16, size uint8) {
	const systemIO = 1
	accessSize := byte(bits.Len8(size)) // 1 for a byte, 2 for a word, 3 for a dword
	t[0], t[1], t[2], t[3] = systemIO, size*8, 0, accessSize
	binary.LittleEndian.PutUint64(t[4:], uint64(port))
}
