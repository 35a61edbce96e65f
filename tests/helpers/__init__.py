"""What several tests share: threads, preemption, interrupts, certificates, checkers."""
