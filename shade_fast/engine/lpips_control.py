"""How an LPIPS bound is held while a perturbation is optimised."""

from __future__ import annotations

import torch


class LpipsControl:
    """Holds the LPIPS bound of each image of a batch, by three controls that every step updates.

        v = clip(LPIPS/aim - 1, -1, 1),   aim = bound/(1 - 0.4·r^0.6),   r the share of the steps that is left
        weight of the LPIPS gradient:  w·exp(2·v),  w <- w·exp(0.1·v) inside [0.01, 50], from 1
        length of the step:            where v > 0 0.8·length, at least 0.05, else min(1.15·length, 1), from 0.15
        share of the perturbation kept:  clip(aim/LPIPS, 0.9, 1)

    The response exp(2·v) damps the swings of the accumulated w. Length and share are for images with wide flat areas.
    Signed steps of full length are noise there, which breaks the bound by itself: no weight fixes that, and it goes
    away only when the perturbation shrinks. Shrinking takes many steps, so the first ones are short, and w begins where
    it settles. The aim is above the bound, because part of the LPIPS during long steps is their noise, which goes away
    as they shorten; an image held to the bound itself would end a fifth below it. Everything is kept in tensors that
    stay where they are.
    """

    FIRST, ACCUMULATION, RANGE, RESPONSE = 1.0, 0.1, (0.01, 50.0), 2.0
    FIRST_LENGTH, SHORTEN, LENGTHEN, SHORTEST = 0.15, 0.8, 1.15, 0.05
    LEAST_KEPT = 0.9
    #: the share of the first step's LPIPS that is noise, and how it falls with the share of the steps left
    NOISE, FALL = 0.4, 0.6

    def __init__(self, bound: float, count: int, device: torch.device) -> None:
        self.bound = bound
        self.length = torch.full((count,), self.FIRST_LENGTH, device=device)
        self.kept = torch.ones(count, device=device)
        #: whether each image was inside its bound at the last step
        self.held = torch.ones(count, dtype=torch.bool, device=device)
        self._accumulated = torch.full((count,), self.FIRST, device=device)

    def begin(self, image: int) -> None:
        """Another image takes the place of one."""
        self.length[image] = self.FIRST_LENGTH
        self.kept[image] = 1
        self.held[image] = True
        self._accumulated[image] = self.FIRST

    def __call__(self, lpips: torch.Tensor, left: torch.Tensor | float = 0.0) -> torch.Tensor:
        """The weights [count] for the LPIPS distances [count] of a step; length, share and `held` are updated to that
        step.

        left: share of each image's steps that is still to be taken; 0 holds the bound itself.
        """
        aim = self.bound / (1 - self.NOISE * left**self.FALL)
        violation = (lpips / aim - 1).clamp(-1, 1)
        inside = violation <= 0
        self.held.copy_(lpips <= self.bound)
        self._accumulated.mul_(torch.exp(self.ACCUMULATION * violation)).clamp_(*self.RANGE)
        shorter = (self.SHORTEN * self.length).clamp(min=self.SHORTEST)
        self.length.copy_(torch.where(inside, (self.LENGTHEN * self.length).clamp(max=1), shorter))
        self.kept.copy_((aim / lpips.clamp_min(torch.finfo(lpips.dtype).tiny)).clamp(self.LEAST_KEPT, 1))
        return self._accumulated * torch.exp(self.RESPONSE * violation)
