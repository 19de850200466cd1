"""Who asks: client processes that send by an absolute schedule and stamp what comes back."""
